"""Everything around the gateway that `make demo` and the tests need: a district, cameras, boxes,
gridworkers, viewers.

Nothing in here imports `gateway`, and nothing in `gateway` knows that these are simulated: they meet only
at the formats and protocols of docs/contract.md. A shared codec would cancel out shared bugs.
"""
