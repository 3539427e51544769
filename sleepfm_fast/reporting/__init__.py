"""The pieces of the report: what a run folder holds, plots as SVG, one module a section, the page around them.

``sources`` opens folders; ``scale plot marks`` draw; ``page`` holds what sections are made of and writes the HTML;
every other module makes one section of :mod:`sleepfm_fast.report`.
"""
