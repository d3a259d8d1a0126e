"""The scales: accuracy and latency of the committed bundle."""
