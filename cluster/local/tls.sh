#!/bin/sh
# Make the TLS files of one cluster in a new folder: ca.pem, cert.pem, key.pem.
#
#   [DAYS=365] tls.sh DIR
#
# Scheduler, workers and clients all use the same three files. Dask asks each side for a certificate of this CA and
# does not look at host names, so key.pem is the key to the cluster: whoever has it runs code there. The CA's own
# key is not kept; to shut somebody out, or when the days are over, make a new folder.
set -eu
umask 077

dir=${1:-}
[ -n "$dir" ] || { echo "usage: [DAYS=365] ${0##*/} DIR" >&2; exit 2; }
[ ! -e "$dir" ] || { echo "${0##*/}: $dir exists: give a new folder, or delete that one first" >&2; exit 2; }
command -v openssl >/dev/null || { echo "${0##*/}: openssl is not installed" >&2; exit 2; }

mkdir -p "$dir"
dir=$(CDPATH='' cd -- "$dir" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/openssl.cnf" <<'CNF'
[req]
distinguished_name = name
prompt = no
[name]
CN = skyclass cluster
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[member]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF
days=${DAYS:-365}
openssl ecparam -name prime256v1 -genkey -noout -out "$work/ca-key.pem"
openssl ecparam -name prime256v1 -genkey -noout -out "$dir/key.pem"
openssl req -x509 -config "$work/openssl.cnf" -extensions ca -subj "/CN=skyclass cluster CA" -days "$days" \
    -key "$work/ca-key.pem" -out "$dir/ca.pem"
openssl req -new -config "$work/openssl.cnf" -key "$dir/key.pem" -out "$work/request.pem"
openssl x509 -req -in "$work/request.pem" -CA "$dir/ca.pem" -CAkey "$work/ca-key.pem" -set_serial 1 -days "$days" \
    -extfile "$work/openssl.cnf" -extensions member -out "$dir/cert.pem" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cat >&2 <<TEXT
$dir holds ca.pem, cert.pem and key.pem, valid for $days days. Copy them (scp -p) to each machine of the cluster.
next, on the scheduler's machine:
  TLS_CA=$dir/ca.pem TLS_CERT=$dir/cert.pem TLS_KEY=$dir/key.pem HOST=THIS-MACHINE $here/scheduler.sh
TEXT
