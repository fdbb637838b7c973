"""Neural parts that techniques and models share, one module a topic; each registers its closed form beside its class.

A part stands here once two techniques or models use it; what only one technique does stays with that technique. Names
of parameters are those of the published networks, whose weights load by them, and must stay.
"""
