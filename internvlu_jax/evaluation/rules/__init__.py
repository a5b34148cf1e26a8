"""How each benchmark counts: pure functions from answers, or from a judge's numbers, to scores with their intervals.

One file a benchmark. Each says where the official rule is odd, and keeps the oddity, so that numbers can be compared.
"""
