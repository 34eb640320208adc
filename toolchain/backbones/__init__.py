"""Pretrained networks: which one (settings), where its weights come from (hub, file, bundled), how it is
kept on disk (network, plan), how it is made smaller (pruning) and what it costs (counts).

Sources of weights, one file each: hub.py, files.py, bundled.py.
"""
