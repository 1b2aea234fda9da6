"""The orders of other systems, one priority each, to be compared against.

Each takes from its source the order in which calls wait, and nothing else: what a system does besides, in its router
or inside its engines, is named in the docstring as left out. None of them gives up a call whose deadline has passed,
and only least laxity first knows a call's own priority, as their sources know neither.
"""
