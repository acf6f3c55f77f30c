"""Deployment at organizations: certificates, keys, enrolment, processes, logs, health. Nothing here imports Flower."""
