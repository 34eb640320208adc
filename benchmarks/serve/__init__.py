"""What serving costs: overhead over a bare session, throughput at saturation, thirty minutes of load and faults."""
