"""`zmqpp doctor`: what on this machine would stop a pipeline, one file a subject. Needs neither vLLM nor torch."""

from zmqpp.doctor.deployment import Deployment
from zmqpp.doctor.finding import Finding, examine

__all__ = ["Deployment", "Finding", "examine"]
