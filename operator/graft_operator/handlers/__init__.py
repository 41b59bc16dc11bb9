"""The door of the control plane in a cluster: watches deliver changes, an audit proves them alive.

A handler parses, hands the change over and returns. kopf is known here and nowhere else.
"""
