"""What both dialects and the pages share of the REST application: requests, responses, the guard, routes, metrics."""
