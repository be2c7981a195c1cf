"""Laws that decide on counts, on equal footing: the same scrapes, bounds, budget and cold start."""
