"""Names of the files in an organization's folder and in a server's: each is written here and nowhere else."""

from __future__ import annotations

# In both folders
INVITATION = "invitation.json"  # `deployment.Invitation`: who takes part, the same file for everybody
LOCK = ".lock"  # held by the process that serves the folder, and names it
EVENTS = "events.jsonl"  # what happened, for machines: words of a fixed list, numbers, times; 0600
ROUNDS = "rounds"  # rounds/ROUND/ holds what a round left
LLM_ADAPTER = "llm_adapter"  # PEFT folder in rounds/ROUND/
FLOWER_HOME = "flower"  # Flower's own files and logs, 0700

# An organization's folder
ORGANIZATION_CONFIG = "organization.toml"  # `config.OrganizationConfig`: configuration and limits, 0600
IDENTITY_KEY = "identity.key"  # Ed25519 identity, 0600
NODE_KEY = "supernode"  # ECDSA key of the SuperNode, 0600; the public one lies in supernode.pub
ENROLMENT = "enrolment.json"  # `deployment.Enrolment`: public keys for the server's operator
CA_CERTIFICATE = "ca.crt"  # PEM file of the authority of the server's certificate
STATE = "state.sqlite"  # protocol state between messages, 0600 (`clients.node_store`)
TRAINING = "training.safetensors"  # a round's training that is not at its end, 0600 (`training.DpCheckpoint`)
LEDGER = "ledger.sqlite"  # privacy ledger, 0600
LEDGER_HEAD = "ledger.head"  # how long the ledger was and how it ended, 0600
CLIENT_LOG = "client.log"  # refusals and tracebacks, 0600
EVALUATIONS = "evaluations.jsonl"  # scores of each round's models on the organization's own test rows, 0600
WORKER_SOCKET = "worker.sock"  # of the resident worker, 0600
WORKER_LOG = "worker.log"  # 0600
SUPERNODE_LOG = "supernode.log"  # in flower/, 0600
RUNTIME_SECRET = "runtime.secret"  # in flower/, 0600: between the SuperNode and its executor
ONLINE = "online.json"  # in flower/, 0600: under which node id the SuperNode is online
STATEMENT = "adapter.json"  # in rounds/ROUND/, 0600: the provider's signed statement about llm_adapter
MODEL_CARD = "README.md"  # in llm_adapter/: what the adapter is, for people and for the hub
OWN_UPDATE = "own_update.safetensors"  # in rounds/ROUND/, of a simulation that keeps updates
CURRENT_ADAPTER = "current_adapter"  # link to the adapter in use (`clients.adapters.kept`)
NEWEST_ADAPTER = "newest_adapter"  # link to the adapter that was delivered last

# A member's folder, of secure averages of any Flower app; with IDENTITY_KEY, STATE, CLIENT_LOG and ROSTER
POLICY = "policy.toml"  # `config.MemberPolicy`, 0600

# A server's folder
SERVER_CONFIG = "server.toml"  # where it listens, and the plan; 0600 (`deployment.load_server`)
PROVIDER_KEY = "provider.key"  # Ed25519 key that signs LLM adapters, 0600
ENROLMENTS = "enrolments"  # enrolments/NAME.json, one for each organization
ROSTER = "roster.txt"  # Ed25519 keys of the organizations, one hex key a line
FEDERATION = "federation.json"  # the run so far (`strategies.checkpoints`)
FAILURE = "failure.json"  # why the ServerApp ended by an error; gone when it is started again
ARRAYS = "arrays.npz"  # of a secure average: the model after its last finished round (`flower.average_files`)
BEACON = "beacon.bin"  # proof of the beacon that draws the samples of the run (`secagg.BeaconProof`)
STATUS = "status.json"  # where the run stands right now
SUPEREXEC_SECRET = "superexec.secret"  # in flower/, 0600: between the SuperLink and its SuperExec
GLOBAL_UPDATE = "global_update.safetensors"  # in rounds/ROUND/
ROUND_RECORD = "round.json"  # in rounds/ROUND/: record, hashes and signature

# A simulation's folder, which is also its server's
SIMULATION = "simulation.toml"  # `config.SimulationConfig`: what the run was started with; written before all else
SIMULATION_LOCK = ".simulation.lock"  # held by the process that runs the simulation
ORGANIZATIONS = "organizations"  # organizations/NAME/, one folder for each
PROMPTS = "public_prompts.jsonl"  # that the provider refines on
REPORT = "report.json"  # `reports.SimulationReport`; the last file that a run writes

ORGANIZATION_PRIVATE = (
    ORGANIZATION_CONFIG,
    IDENTITY_KEY,
    NODE_KEY,
    STATE,
    TRAINING,
    LEDGER,
    f"{LEDGER}-wal",
    f"{LEDGER}-shm",
    LEDGER_HEAD,
    CLIENT_LOG,
    f"{CLIENT_LOG}.1",
    EVENTS,
    EVALUATIONS,
    WORKER_SOCKET,
    WORKER_LOG,
    FLOWER_HOME,
    f"{FLOWER_HOME}/{RUNTIME_SECRET}",
    f"{FLOWER_HOME}/{SUPERNODE_LOG}",
)
"""What nobody but an organization's own user may read, besides the folder itself."""

SERVER_PRIVATE = (
    SERVER_CONFIG,
    PROVIDER_KEY,
    EVENTS,
    FLOWER_HOME,
    f"{FLOWER_HOME}/{SUPEREXEC_SECRET}",
)
"""The same of a server's folder."""
