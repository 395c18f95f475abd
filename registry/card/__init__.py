"""All that is known of a version, as Markdown and as one HTML page."""
