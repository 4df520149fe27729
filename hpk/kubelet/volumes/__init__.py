"""Volumes of a Pod.

payload   pure: what files a configMap, secret, downwardAPI or projected volume holds
atomic    writes such files so that a reader sees all of the old or all of the new ones
mounts    pure: which host path each volumeMount binds, and what has to be made in the job first
"""
