"""The status page: what it shows, gathered line by line, and the small HTTP server that shows it."""
