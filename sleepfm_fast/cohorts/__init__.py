"""From a folder of nights and a table of participants to a clip store; ``preprocess`` and ``convert`` call it."""
