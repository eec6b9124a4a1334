"""What people look at: plots as PNG files and one-file HTML reports."""
