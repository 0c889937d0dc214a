"""What the project measures of itself, each a command; results lie beside them as JSON."""
