"""What was measured, for people: tables, plots and the HTML page."""
