"""What a study found: plain info objects, and their table, PNG and HTML renderers."""
