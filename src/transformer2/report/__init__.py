"""Statistics, tables and figures: reads what runs leave behind, writes text, Markdown and PNG."""
