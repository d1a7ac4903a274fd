"""Stock π0.5 at any size as a policy type of ``lerobot-train``: the opponent of ``vs_lerobot.py``.

Stock's constructors know two sizes only. Here they take the sizes of :class:`PI05RLConfig`; every pass, loss and
processor is LeRobot's own. Only the tokenizer is another (stock's is a gated download), padded as stock pads it.
"""

from . import configuration_stock_pi05, modeling_stock_pi05, processor_stock_pi05

__all__ = ["configuration_stock_pi05", "modeling_stock_pi05", "processor_stock_pi05"]
