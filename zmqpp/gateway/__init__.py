"""The HTTP entry of `zmqpp serve`: one address for the API, the health, the status and the page of a pipeline."""
