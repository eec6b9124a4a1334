"""The champion behind HTTP: a warm model, a bounded queue, and nothing kept of what was sent."""
