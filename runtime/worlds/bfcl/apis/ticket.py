"""TicketAPI: support tickets of a company."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Api, ApiError, require

EDITABLE = ("title", "description", "status", "priority")


class TicketAPI(Api):
    """A queue of tickets, and who is logged in."""

    INITIAL: ClassVar[Mapping[str, Any]] = {"ticket_queue": [], "ticket_counter": 1, "current_user": None}
    ticket_queue: list[dict[str, Any]]
    ticket_counter: int
    current_user: str | None

    def ticket_login(self, username: str, password: str) -> dict[str, Any]:
        self.current_user = username
        return {"success": True}

    def ticket_get_login_status(self) -> dict[str, Any]:
        return {"login_status": self.current_user is not None}

    def logout(self) -> dict[str, Any]:
        was_there, self.current_user = self.current_user is not None, None
        return {"success": was_there}

    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> dict[str, Any]:
        require(self.current_user is not None, "no user is logged in")
        require(1 <= priority <= 5, "priority is between 1 and 5")
        ticket = {
            "id": self.ticket_counter,
            "title": title,
            "description": description,
            "status": "Open",
            "priority": priority,
            "created_by": self.current_user,
        }
        self.ticket_queue.append(ticket)
        self.ticket_counter += 1
        return dict(ticket)

    def get_ticket(self, ticket_id: int) -> dict[str, Any]:
        return dict(self._ticket(ticket_id))

    def get_user_tickets(self, status: str | None = None) -> dict[str, Any]:
        require(self.current_user is not None, "no user is logged in")
        wanted = None if status in (None, "None") else str(status).lower()
        mine = [ticket for ticket in self.ticket_queue if ticket.get("created_by") == self.current_user]
        return {"tickets": [dict(ticket) for ticket in mine if wanted in (None, ticket["status"].lower())]}

    def edit_ticket(self, ticket_id: int, updates: dict[str, Any]) -> dict[str, Any]:
        ticket = self._ticket(ticket_id)
        strange = sorted(set(updates) - set(EDITABLE))
        require(not strange, f"cannot change {', '.join(strange)}")
        ticket.update(updates)
        return {"status": f"ticket {ticket_id} updated"}

    def resolve_ticket(self, ticket_id: int, resolution: str) -> dict[str, Any]:
        ticket = self._ticket(ticket_id)
        require(ticket["status"] != "Resolved", f"ticket {ticket_id} is resolved already")
        ticket |= {"status": "Resolved", "resolution": resolution}
        return {"status": f"ticket {ticket_id} resolved"}

    def close_ticket(self, ticket_id: int) -> dict[str, Any]:
        ticket = self._ticket(ticket_id)
        require(ticket["status"] != "Closed", f"ticket {ticket_id} is closed already")
        ticket["status"] = "Closed"
        return {"status": f"ticket {ticket_id} closed"}

    def _ticket(self, ticket_id: int) -> dict[str, Any]:
        found = next((ticket for ticket in self.ticket_queue if ticket["id"] == ticket_id), None)
        if found is None:
            raise ApiError(f"there is no ticket {ticket_id}")
        return found
