"""placeholder"""


def read_pinned_labels(sources, name):
    raise NotImplementedError
