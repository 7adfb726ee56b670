CREATE INDEX idx_point_live ON s3_hyperv_backup_points (client_id, deleted_at, created_at);
CREATE INDEX idx_point_live_tenant ON s3_hyperv_backup_points (tenant_id, deleted_at, created_at);
CREATE INDEX idx_point_sound ON s3_hyperv_backup_points (client_id, vm_guid, deleted_at, verify_status, backup_type, snapshot_time);
CREATE INDEX idx_vm_status_severity ON vm_status (client_id, severity, vm_name);
CREATE INDEX idx_job_name ON s3_cloudbackup_jobs (client_id, name);
CREATE INDEX idx_agent_name ON s3_cloudbackup_agents (client_id, hostname);
