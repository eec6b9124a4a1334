"""Work on a home as a whole: backup and restore, what it counts for a monitoring system, and the space that it takes."""
