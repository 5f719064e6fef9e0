"""Tables of a page, from results."""
