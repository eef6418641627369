#!/usr/bin/env bash
# A Slurm of one node for tests: slurm.sh start FOLDER | stop FOLDER. As root, with Debian's slurm-wlm and munge; everything that
# it writes lies in FOLDER, and `source FOLDER/env` points sbatch and its friends at it.
set -euo pipefail
what=$1
folder=$(realpath -m "$2")
if [ "$what" = stop ]; then
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
    exit 0
fi
[ "$(id -u)" = 0 ] || { echo "slurm.sh starts daemons, which needs root" >&2; exit 3; }
for tool in munged slurmctld slurmd sbatch sinfo; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || { echo "$tool is not installed" >&2; exit 3; }
done
export PATH=$PATH:/usr/sbin
mkdir -p "$folder"/{state,spool}
host=$(hostname -s)
cores=$(nproc)
# munge wants its files to belong to whoever runs it, in folders that nobody else can write to
dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
chmod 700 "$folder"
chmod 600 "$folder/munge.key"
munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((20000 + $$ % 10000))
SlurmdPort=$((30000 + $$ % 10000))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "export SLURM_CONF=$folder/slurm.conf PATH=$PATH" >"$folder/env"
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd -N "$host"
for _ in $(seq 60); do
    if sinfo -h -o %T 2>/dev/null | grep -q '^idle'; then exit 0; fi
    sleep 0.5
done
echo "the node did not become idle: $(sinfo -h 2>&1 | head -1)" >&2
exit 3
