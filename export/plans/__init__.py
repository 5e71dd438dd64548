"""TensorRT plans: a graph of the contract, compiled for the GPU that is here. Never inside a request."""

from reidserve.export.plans.build import build_plan, find_builder, plan_file

__all__ = ["build_plan", "find_builder", "plan_file"]
