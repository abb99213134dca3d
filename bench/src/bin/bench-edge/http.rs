//! HTTP requests: a proxy's processor time for one, with small answers over open connections.

use anyhow::{Context as _, bail};
use bench::texts;
use tokio::process::Command;

use crate::proxies::{Over, Proxy};

/// Long enough that the unit of processor time, a hundredth of a second, is at most a percent.
const SECONDS: u32 = 2;
/// Enough to keep a proxy busy on every core, and few enough that none of them queues.
const CONNECTIONS: usize = 64;

/// The requests of one measurement: a second or two of the fastest proxy.
const HTTP2_REQUESTS: usize = 40_000;

/// The figures of one run.
pub(crate) struct Load {
    /// Processor time of a request, in microseconds.
    pub(crate) cpu_us: f64,
    /// Requests answered in a second, with load generator and stack on the same cores.
    pub(crate) per_second: f64,
}

/// Sends requests for small answers as fast as the proxy answers.
pub(crate) async fn measure(proxy: &Proxy, over: Over) -> anyhow::Result<Load> {
    // The first second fills pools of connections and caches.
    wrk(proxy, over, 1).await?;
    let before = proxy.cpu()?;
    let requests = wrk(proxy, over, SECONDS).await?;
    let used = proxy.cpu()? - before;
    Ok(Load {
        cpu_us: used.as_secs_f64() * 1e6 / requests,
        per_second: requests / f64::from(SECONDS),
    })
}

/// Sends the same over HTTP/2 and TLS. Returns the processor time of a request, in microseconds.
pub(crate) async fn measure_http2(proxy: &Proxy) -> anyhow::Result<f64> {
    h2load(proxy, HTTP2_REQUESTS / 10).await?;
    let before = proxy.cpu()?;
    h2load(proxy, HTTP2_REQUESTS).await?;
    let used = proxy.cpu()? - before;
    Ok(used.as_secs_f64() * 1e6 / HTTP2_REQUESTS as f64)
}

/// Fails unless every request got a good answer.
async fn h2load(proxy: &Proxy, requests: usize) -> anyhow::Result<()> {
    let output = Command::new("h2load")
        .args(["-t", "1", "-c", "16", "-m", "4", "-n", &requests.to_string()])
        .arg(format!("https://{}/v1/models", proxy.address(Over::Tls)))
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| texts::cannot_start("h2load"))?;
    all_succeeded(&String::from_utf8_lossy(&output.stdout), requests)
}

fn all_succeeded(said: &str, requests: usize) -> anyhow::Result<()> {
    let is_http2 = said.contains("Application protocol: h2\n");
    if !is_http2 || !said.contains(&format!(" {requests} succeeded, 0 failed, 0 errored, 0 timeout")) {
        bail!("requests failed: {said}");
    }
    Ok(())
}

/// The number of requests with a good answer. Fails for any other answer.
async fn wrk(proxy: &Proxy, over: Over, seconds: u32) -> anyhow::Result<f64> {
    let scheme = match over {
        Over::Plain => "http",
        Over::Tls => "https",
    };
    let output = Command::new("wrk")
        .args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{seconds}s")])
        .arg(format!("{scheme}://{}/v1/models", proxy.address(over)))
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| texts::cannot_start("wrk"))?;
    requests(&String::from_utf8_lossy(&output.stdout))
}

fn requests(said: &str) -> anyhow::Result<f64> {
    if said.contains("Socket errors") || said.contains("Non-2xx") {
        bail!("requests failed: {said}");
    }
    let line = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let (count, _) = line.with_context(|| format!("wrk does not say how many requests it made: {said}"))?;
    Ok(count.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_load_counts() {
        let clean = "Running 4s test\n  1 threads\n  48211 requests in 4.00s, 6.2MB read\nRequests/sec:  12052\n";
        assert_eq!(requests(clean).unwrap(), 48_211.0);
        assert!(requests(&clean.replace("Requests/sec", "  Non-2xx or 3xx responses: 1\nRequests/sec")).is_err());
        assert!(requests("").is_err());
        let clean = "Application protocol: h2\n\nrequests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert!(all_succeeded(clean, 9).is_ok());
        assert!(all_succeeded(clean, 10).is_err());
        assert!(all_succeeded(&clean.replace("0 errored", "1 errored"), 9).is_err());
        assert!(all_succeeded(&clean.replace("h2", "http/1.1"), 9).is_err());
    }
}
