"""``pi05-rl report``: one self-contained HTML page about a labeling, its dataset and, if there is one, its run; or
about what a dataset is worth before there is either.

The page is made from Parquet columns, video frames and hand-written SVG.
"""
