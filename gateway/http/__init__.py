"""The HTTP edge: one route table, one authorisation, one error format. Holds no domain rules of its own."""
