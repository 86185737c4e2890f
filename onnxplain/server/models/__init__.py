"""Models that come and go: which are served, and what one holds."""
