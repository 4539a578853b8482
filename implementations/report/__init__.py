"""What is shown of the results: tables, figures, and the page."""
