//! An http proxy that keeps what it fetched: packages are local for whoever asks again. It lives for one run of the
//! benchmark, so nothing in it grows old.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};

/// What was fetched: address to file, or to nothing where there is no such thing.
type Kept = Arc<Mutex<BTreeMap<String, Option<PathBuf>>>>;

/// Serves on a port of this machine's own, as long as the process lives; keeps its files in `dir`.
pub fn start(dir: &Path) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening for the bootstraps")?;
    let address = listener.local_addr()?;
    let (dir, kept) = (dir.to_owned(), Kept::default());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (dir, kept) = (dir.clone(), kept.clone());
            thread::spawn(move || serve(&stream, &dir, &kept));
        }
    });
    Ok(address)
}

/// Answers one request after the other, as apt sends them.
fn serve(stream: &TcpStream, dir: &Path, kept: &Kept) -> Result<()> {
    let mut requests = BufReader::new(stream);
    while let Some(address) = requested(&mut requests)? {
        match fetched(&address, dir, kept)? {
            Some(path) => {
                let mut file = File::open(path)?;
                let length = file.metadata()?.len();
                write!(&*stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
                io::copy(&mut file, &mut &*stream)?;
            }
            None => write!(&*stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
    Ok(())
}

/// The address of the next request; its other lines say nothing that matters here.
fn requested(requests: &mut impl BufRead) -> Result<Option<String>> {
    let mut first = String::new();
    if requests.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while requests.read_line(&mut line)? > 2 {
        line.clear();
    }
    let address = first.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
    Ok(Some(address.with_context(|| format!("a request that is no GET: {first}"))?.to_owned()))
}

/// The first who asks waits for the network, and the others for him.
fn fetched(address: &str, dir: &Path, kept: &Kept) -> Result<Option<PathBuf>> {
    let mut kept = kept.lock().map_err(|_| anyhow::anyhow!("another request failed"))?;
    if let Some(known) = kept.get(address) {
        return Ok(known.clone());
    }
    let path = dir.join(kept.len().to_string());
    let mut wget = Command::new("wget");
    wget.args(["--quiet", "--tries=3", "--output-document"]).arg(&path).arg(address).stdin(Stdio::null());
    let found = wget.status().context("running wget")?.success().then_some(path);
    kept.insert(address.to_owned(), found.clone());
    Ok(found)
}
