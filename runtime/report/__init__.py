"""The scoreboard and the page that shows it."""
