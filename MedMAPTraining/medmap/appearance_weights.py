"""Weights of ``medmap.appearance``, written by ``experiments/fit_appearance.py``.

Fitted on 67 procedural cases of ``medmap phantom``: seeds 7000 to 7019 at 3 mm, 7000 to 7023 at
4 mm, 1000 to 1022 at 2.5 mm. MEAN and DEVIATION are of the features in the order of
``appearance.NAMES``, WEIGHTS of the features after scaling.
"""

# fmt: off
MEAN = [-0.6621, -0.00274, 0.1222, 0.1727, 0.2281, -0.2867, -0.1443, 0.06598, 0.1346, 0.2593,
    -1.789, 2.067, -2.053, -1.585, -0.6939, 0.6889, 1.683, 2.547, 1.196]
DEVIATION = [0.8498, 0.2388, 0.1822, 0.1586, 0.2239, 0.4604, 0.3379, 0.09765, 0.1169, 0.211,
    0.7487, 0.8598, 0.712, 0.506, 0.1616, 0.1725, 0.5692, 1.017, 0.2425]
WEIGHTS = [0.2775, 0.1274, 0.1614, 0.03499, 0.03993, 0.3054, 0.1187, -0.2006, -0.3036, -0.6033,
    0.6354, 0.5445, 0.3721, 0.3701, 0.3606, 0.3421, -0.006304, -0.1135, 0.3096]
CONSTANT = -1.694
# fmt: on
