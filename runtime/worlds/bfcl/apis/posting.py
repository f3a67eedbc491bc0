"""TwitterAPI: posts, comments, retweets and whom one follows."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Api, ApiError, require


class TwitterAPI(Api):
    """State of one account's view of the network."""

    INITIAL: ClassVar[Mapping[str, Any]] = {
        "username": "john",
        "password": "john123",
        "authenticated": False,
        "tweets": {},
        "comments": {},
        "retweets": {},
        "following_list": [],
        "tweet_counter": 0,
    }
    username: str
    password: str
    authenticated: bool
    tweets: dict[int, dict[str, Any]]
    comments: dict[int, list[dict[str, str]]]
    retweets: dict[str, list[int]]
    following_list: list[str]
    tweet_counter: int

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.tweets = {int(number): tweet for number, tweet in self.tweets.items()}
        self.comments = {int(number): said for number, said in self.comments.items()}

    def authenticate_twitter(self, username: str, password: str) -> dict[str, Any]:
        self.authenticated = (username, password) == (self.username, self.password)
        return {"authentication_status": self.authenticated}

    def posting_get_login_status(self) -> dict[str, Any]:
        return {"login_status": self.authenticated}

    def post_tweet(self, content: str, tags: list[str] | None = None, mentions: list[str] | None = None) -> dict[str, Any]:
        self._logged_in()
        tweet = {
            "id": self.tweet_counter,
            "username": self.username,
            "content": content,
            "tags": list(tags or []),
            "mentions": list(mentions or []),
        }
        self.tweets[self.tweet_counter] = tweet
        self.tweet_counter += 1
        return dict(tweet)

    def retweet(self, tweet_id: int) -> dict[str, Any]:
        self._logged_in()
        self._tweet(tweet_id)
        mine = self.retweets.setdefault(self.username, [])
        if tweet_id in mine:
            return {"retweet_status": "already retweeted"}
        mine.append(tweet_id)
        return {"retweet_status": "retweeted"}

    def comment(self, tweet_id: int, comment_content: str) -> dict[str, Any]:
        self._logged_in()
        self._tweet(tweet_id)
        self.comments.setdefault(tweet_id, []).append({"username": self.username, "content": comment_content})
        return {"comment_status": "commented"}

    def mention(self, tweet_id: int, mentioned_usernames: list[str]) -> dict[str, Any]:
        self._logged_in()
        self._tweet(tweet_id)["mentions"].extend(mentioned_usernames)
        return {"mention_status": "mentioned"}

    def follow_user(self, username_to_follow: str) -> dict[str, Any]:
        self._logged_in()
        if username_to_follow in self.following_list:
            return {"follow_status": False}
        self.following_list.append(username_to_follow)
        return {"follow_status": True}

    def unfollow_user(self, username_to_unfollow: str) -> dict[str, Any]:
        self._logged_in()
        if username_to_unfollow not in self.following_list:
            return {"unfollow_status": False}
        self.following_list.remove(username_to_unfollow)
        return {"unfollow_status": True}

    def list_all_following(self) -> dict[str, Any]:
        self._logged_in()
        return {"following_list": list(self.following_list)}

    def get_tweet(self, tweet_id: int) -> dict[str, Any]:
        return dict(self._tweet(tweet_id))

    def get_user_tweets(self, username: str) -> dict[str, Any]:
        return {"user_tweets": [dict(tweet) for tweet in self.tweets.values() if tweet["username"] == username]}

    def search_tweets(self, keyword: str) -> dict[str, Any]:
        low = keyword.lower()
        found = [
            dict(tweet)
            for tweet in self.tweets.values()
            if low in tweet["content"].lower() or any(low in tag.lower() for tag in tweet["tags"])
        ]
        return {"matching_tweets": found}

    def get_tweet_comments(self, tweet_id: int) -> dict[str, Any]:
        self._tweet(tweet_id)
        return {"comments": list(self.comments.get(tweet_id, []))}

    def get_user_stats(self, username: str) -> dict[str, Any]:
        return {
            "tweet_count": sum(tweet["username"] == username for tweet in self.tweets.values()),
            "following_count": len(self.following_list) if username == self.username else 0,
            "retweet_count": len(self.retweets.get(username, [])),
        }

    def _tweet(self, tweet_id: int) -> dict[str, Any]:
        if tweet_id not in self.tweets:
            raise ApiError(f"there is no tweet {tweet_id}")
        return self.tweets[tweet_id]

    def _logged_in(self) -> None:
        require(self.authenticated, "the user is not authenticated")
