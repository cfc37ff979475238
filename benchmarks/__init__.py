"""What pytest-benchmark measures from commit to commit. What users run is zmqpp.bench."""
