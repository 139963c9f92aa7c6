"""How much each head matters: methods by name in :mod:`~headprune.scoring.catalogue`, a file for each signal that they read.

Nothing is imported here, so that the catalogue can be read without torch.
"""
