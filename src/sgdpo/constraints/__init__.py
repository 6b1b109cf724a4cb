"""Instructions whose fulfilment a program decides: kinds of constraint, everyday topics, and the checker."""
