"""MessageAPI: messages between the users of a workspace."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

from .base import Api, require

USERS = {"Alice": "USR001", "Bob": "USR002", "Catherine": "USR003", "Daniel": "USR004"}


class MessageAPI(Api):
    """`inbox` lists what was sent, oldest first: `{receiver: text}`, or `{receiver: {sender: [texts]}}` as some tasks start."""

    INITIAL: ClassVar[Mapping[str, Any]] = {
        "user_map": USERS,
        "inbox": [],
        "message_count": 0,
        "user_count": len(USERS),
        "current_user": None,
    }
    user_map: dict[str, str]
    inbox: list[dict[str, Any]]
    message_count: int
    user_count: int
    current_user: str | None

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        # Some tasks count fewer users than they list; a new one never takes a listed user's name.
        self.user_count = max(self.user_count, len(self.user_map))
        self.message_count = max(self.message_count, len(self.inbox))

    def list_users(self) -> dict[str, Any]:
        return {"user_list": list(self.user_map)}

    def get_user_id(self, user: str) -> dict[str, Any]:
        require(user in self.user_map, f"user '{user}' is not in this workspace")
        return {"user_id": self.user_map[user]}

    def message_login(self, user_id: str) -> dict[str, Any]:
        require(user_id in self.user_map.values(), f"user ID '{user_id}' is not in this workspace")
        self.current_user = user_id
        return {"login_status": True, "message": f"user '{user_id}' is logged in"}

    def message_get_login_status(self) -> dict[str, Any]:
        return {"login_status": self.current_user is not None}

    def send_message(self, receiver_id: str, message: str) -> dict[str, Any]:
        self._logged_in()
        require(receiver_id in self.user_map.values(), f"receiver ID '{receiver_id}' is not in this workspace")
        self.message_count += 1
        self.inbox.append({receiver_id: message})
        return {"sent_status": True, "message_id": self.message_count, "message": f"sent to '{receiver_id}'"}

    def delete_message(self, receiver_id: str) -> dict[str, Any]:
        self._logged_in()
        for place in reversed(range(len(self.inbox))):
            if receiver_id in self.inbox[place]:
                del self.inbox[place]
                return {"deleted_status": True, "receiver_id": receiver_id, "message": f"deleted the latest to '{receiver_id}'"}
        return {"deleted_status": False, "receiver_id": receiver_id, "message": f"there is none to '{receiver_id}'"}

    def view_messages_sent(self) -> dict[str, Any]:
        self._logged_in()
        grouped: dict[str, list[str]] = {}
        for receiver, text in self._sent():
            grouped.setdefault(receiver, []).append(text)
        return {"messages": grouped}

    def search_messages(self, keyword: str) -> dict[str, Any]:
        self._logged_in()
        found = [(receiver, text) for receiver, text in self._sent() if keyword.lower() in text.lower()]
        return {"results": [{"receiver_id": receiver, "message": text} for receiver, text in found]}

    def add_contact(self, user_name: str) -> dict[str, Any]:
        self._logged_in()
        require(user_name not in self.user_map, f"'{user_name}' is a contact already")
        self.user_count += 1
        self.user_map[user_name] = f"USR{self.user_count:03d}"
        return {"added_status": True, "user_id": self.user_map[user_name], "message": f"'{user_name}' added"}

    def get_message_stats(self) -> dict[str, Any]:
        self._logged_in()
        receivers = {receiver for receiver, _ in self._sent()}
        received = sum(receiver == self.current_user for entry in self.inbox for receiver in entry)
        return {"stats": {"received_count": received, "total_contacts": len(receivers)}}

    def _sent(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for entry in deepcopy(self.inbox):
            for receiver, said in entry.items():
                texts = said.get(self.current_user, []) if isinstance(said, dict) else [said]
                found += [(receiver, str(text)) for text in (texts if isinstance(texts, list) else [texts])]
        return found

    def _logged_in(self) -> None:
        require(self.current_user is not None, "no user is logged in")
