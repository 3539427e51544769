"""The paper's tables and figures: what they need, in which order, and our figures beside the paper's."""
