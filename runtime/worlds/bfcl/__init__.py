"""The Berkeley function-calling leaderboard (ShishirPatil/gorilla) as worlds: single calls, and stateful dialogues."""
