#!/usr/bin/env bash
# A real SLURM cluster on nodes.sh: slurmctld on node "ctl", a slurmd and an sshd on each of n1, n2, ...
#   slurm_cluster.sh up DIR COUNT GPUS    COUNT compute nodes with GPUS fake GPUs each
#   slurm_cluster.sh down DIR
#   slurm_cluster.sh on DIR cmd...        run on the controller
#   slurm_cluster.sh boot DIR NODE        start a node that was killed, with its daemons
# Debian: slurmctld slurmd slurm-client iproute2 openssh-server
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/nodes.sh"
verb=$1; DIR=$(realpath -m "$2"); shift 2
S=$DIR/slurm
export SLURM_CONF=$S/slurm.conf

write_conf() { # GPUS node...
  local gpus=$1 n i; shift
  mkdir -p "$S"/{ctld,log,dev}
  head -c 1024 /dev/urandom >"$S/slurm.key"; chmod 600 "$S/slurm.key"
  for i in $(seq 0 $((gpus - 1))); do mknod "$S/dev/nvidia$i" c 1 3; done # plain files are refused
  echo "Name=gpu File=$S/dev/nvidia[0-$((gpus - 1))]" >"$S/gres.conf"
  cat >"$S/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=ctl($(node_ip ctl))
AuthType=auth/slurm
CredType=cred/slurm
AuthInfo=cred_expire=25
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/spool-%n
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd-%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=2
SlurmdTimeout=20
TCPTimeout=2
MessageTimeout=20
BatchStartTimeout=60
UnkillableStepTimeout=180
SlurmdParameters=config_overrides
GresTypes=gpu
CONF
  for n in "$@"; do
    mkdir -p "$S/spool-$n"
    echo "NodeName=$n NodeAddr=$(node_ip "$n") CPUs=4 RealMemory=4096 Gres=gpu:$gpus Weight=${n#n}" >>"$S/slurm.conf"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE" >>"$S/slurm.conf"
}

write_ssh_keys() { # node...
  local n
  ssh-keygen -q -t ed25519 -N "" -f "$DIR/ssh_key"
  for n in "$@"; do
    install -m 600 "$DIR/ssh_key" "$DIR/nodes/$n/ssh/id_ed25519"
    install -m 600 "$DIR/ssh_key.pub" "$DIR/nodes/$n/ssh/authorized_keys"
    echo "StrictHostKeyChecking no" >"$DIR/nodes/$n/ssh/config"
  done
}

daemons() { # of one compute node
  node_on "$1" slurmd -N "$1"
  node_on "$1" mkdir -p /run/sshd
  node_on "$1" /usr/sbin/sshd -f /dev/null -h "$DIR/ssh_key" -E "$DIR/nodes/$1/sshd.log" -o UsePAM=no -o StrictModes=no \
    -o PermitRootLogin=yes -o AuthorizedKeysFile="$HOME/.ssh/authorized_keys"
}

case $verb in
  up)
    names=()
    for i in $(seq "$1"); do names+=("n$i"); done
    nodes_up ctl "${names[@]}"
    write_conf "$2" "${names[@]}"
    write_ssh_keys "${names[@]}"
    node_on ctl slurmctld
    for n in "${names[@]}"; do daemons "$n"; done
    SECONDS=0
    while [ $SECONDS -lt 20 ]; do
      [ "$(node_on ctl timeout 5 sinfo -hN -t idle -o %n 2>/dev/null | sort -u | wc -l)" = "$1" ] && exit 0
      sleep 0.1
    done
    tail -n 20 "$S"/log/*.log >&2; exit 1 ;;
  down) nodes_down ;;
  on) node_on ctl "$@" ;;
  boot) node_start "$1"; daemons "$1" ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
