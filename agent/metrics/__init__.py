"""Every metric of the agent, defined in one place; `README.md` beside this file documents them.

Modules import the objects and count; `agent.web` exposes them. Label sets are bounded: methods, kinds, steps, outcomes,
never ids.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call] # one more series per counter that no query needs
registry = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

cri_operations = Counter("orlop_cri_operations", "CRI calls answered.", ["method"], registry=registry)
cri_errors = Counter("orlop_cri_errors", "CRI calls answered with an error.", ["method", "code"], registry=registry)
cri_seconds = Histogram("orlop_cri_operation_seconds", "Time to answer a CRI call.", ["method"], buckets=_SECONDS, registry=registry)

teardown_step_seconds = Histogram(
    "orlop_teardown_step_seconds", "Time of one step of a shim's or container's teardown.", ["step"], buckets=_SECONDS, registry=registry
)
teardown_step_failures = Counter("orlop_teardown_step_failures", "Teardown steps that failed and stay owned.", ["step"], registry=registry)
dead_shim_cleanups = Counter("orlop_dead_shim_cleanups", "Cleanups after a dead shim.", ["outcome"], registry=registry)
shim_delete_lies = Counter(
    "orlop_shim_delete_lies", "`shim delete` that answered rc 0 while something of the container was left.", registry=registry
)
cgroup_cleanups = Counter(
    "orlop_cgroup_cleanups", "Removals of a cgroup, in each hierarchy.", ["controller", "version", "result"], registry=registry
)
cgroup_cleanup_retries = Counter("orlop_cgroup_cleanup_retries", "Removals of a cgroup tried again.", registry=registry)
cgroup_cleanup_seconds = Histogram(
    "orlop_cgroup_cleanup_seconds", "Time to remove a cgroup from all hierarchies.", buckets=_SECONDS, registry=registry
)
mount_busy = Counter("orlop_mount_busy", "Unmounts refused with EBUSY.", registry=registry)
mount_busy_holders = Counter("orlop_mount_busy_holders", "What was found to hold busy mounts.", ["kind"], registry=registry)
runc_init_found = Counter("orlop_runc_init_found", "Leaked `runc init` processes found.", ["stage"], registry=registry)
runc_init_reaped = Counter("orlop_runc_init_reaped", "Leaked `runc init` processes ended by the agent.", ["stage"], registry=registry)

ledger_entries = Gauge("orlop_ledger_entries", "External resources in the ledger.", ["kind", "state"], registry=registry)
ledger_quarantined = Gauge("orlop_ledger_quarantined", "Stored records that could not be read and were set aside.", registry=registry)
oldest_pending_release = Gauge(
    "orlop_oldest_pending_release_seconds", "Age of the oldest release that was tried and has not succeeded.", ["kind"], registry=registry
)
pending_releases = Gauge("orlop_pending_releases", "Releases that were tried and have not succeeded.", ["kind"], registry=registry)
leaks = Gauge("orlop_leaks", "Leaked resources on the node, at the last audit.", ["kind", "owner"], registry=registry)
leaks_found = Counter("orlop_leaks_found", "Leaked resources that were new to an audit.", ["kind", "owner"], registry=registry)
leaks_reaped = Counter("orlop_leaks_reaped", "Leaks that the agent has released by itself.", ["kind", "owner"], registry=registry)
leak_reap_failures = Counter(
    "orlop_leak_reap_failures", "Attempts of the agent to release a leak that failed.", ["kind", "owner"], registry=registry
)
oldest_leak = Gauge("orlop_oldest_leak_seconds", "Age of the oldest leak, at the last audit.", ["kind", "owner"], registry=registry)
missing = Gauge("orlop_missing", "Resources in the ledger that are gone from the node, at the last audit.", ["kind"], registry=registry)
unknown = Gauge("orlop_unknown", "Findings of the last audit of which it can't be told.", ["kind", "owner"], registry=registry)
audits = Counter("orlop_audits", "Audits by what they could look at.", ["result"], registry=registry)
last_audit = Gauge("orlop_last_audit_timestamp_seconds", "When the last audit ended that could look, in Unix time.", registry=registry)
loop_lag_seconds = Histogram("orlop_event_loop_lag_seconds", "How late the event loop ran a timer.", buckets=_SECONDS, registry=registry)
loop_blocked = Counter("orlop_event_loop_blocking_calls", "Blocking calls caught on the event loop's thread.", ["call"], registry=registry)
ttrpc_late_answers = Counter("orlop_ttrpc_late_answers", "Answers of shims to calls whose caller had given up.", registry=registry)
shim_memory = Gauge("orlop_shim_resident_bytes", "Resident memory of all shims, and of the largest.", ["of"], registry=registry)
log_write_errors = Counter("orlop_log_write_errors", "Container log writes that failed; what was read is lost.", registry=registry)
container_events_dropped = Counter(
    "orlop_container_events_dropped", "Container events lost to a client that reads them too slowly.", registry=registry
)
log_copier_starts = Counter("orlop_log_copier_starts", "Starts of the log copier process.", registry=registry)
cni_operations = Counter("orlop_cni_operations", "CNI operations by verb and outcome.", ["verb", "outcome"], registry=registry)

image_pulls = Counter("orlop_image_pulls", "Image pulls that ended, joined ones counted once.", ["outcome"], registry=registry)
image_pulls_running = Gauge("orlop_image_pulls_running", "Image pulls under way.", registry=registry)
image_pull_bytes = Counter("orlop_image_pull_bytes", "Bytes of layers received from registries.", registry=registry)

of_audits = CollectorRegistry()
"""Those of them that the audits set: all there is without a daemon (`orlop watch`), where the others would be zeros that mean nothing."""
for _metric in (runc_init_found, leaks, leaks_found, oldest_leak, missing, unknown, audits, last_audit):
    of_audits.register(_metric)
