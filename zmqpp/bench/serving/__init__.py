"""Which way of serving one model answers faster? Servers, the load on them, and what is made of it."""
