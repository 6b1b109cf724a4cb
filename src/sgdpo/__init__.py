"""Self-Guided Direct Preference Optimization and its baselines, from config to picture.

Data flows one way: config, data, model, log-probs, method, trainer, record, report.
"""
