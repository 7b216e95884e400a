<?php

// Calls WeChat with a token from Vault, once for each line of its input. PHP 8.1
// or later, with its curl extension.
//
// The environment gives VAULT_ADDR, VAULT_TOKEN and the account's name as
// WECHAT_ACCOUNT; where they differ from the default, VAULT_NAMESPACE (none),
// WECHAT_MOUNT (wechat) and WECHAT_URL (https://api.weixin.qq.com).

declare(strict_types=1);

const REJECTED = [40001, 40014, 42001];

/**
 * Hands out the access token of an account.
 *
 * This is for a process that lives on, such as a worker. Behind a web server PHP
 * forgets everything at the end of a request: there let Vault Agent keep the
 * token in a file (agent/file.hcl), and read the file.
 */
final class Tokens
{
    private ?string $token = null;
    private float $readAgain = 0.0;

    public function __construct(
        private readonly string $vault,
        private readonly string $vaultToken,
        private readonly string $account,
        private readonly string $mount = 'wechat',
        private readonly string $namespace = '',
    ) {
    }

    /** Returns a token that WeChat accepts, from memory while its ttl lasts. */
    public function get(): string
    {
        if (now() < $this->readAgain) {
            return $this->token;
        }
        try {
            $data = $this->ask('token');
            $this->token = $data['access_token'];
            $this->readAgain = now() + $data['ttl'];
        } catch (RuntimeException $failure) {
            if ($this->token === null) {
                throw $failure;
            }
            // The token is good for two minutes more: Vault may be back by then.
            error_log($failure->getMessage());
            $this->readAgain = now() + 5;
        }
        return $this->token;
    }

    /**
     * Reports a token that WeChat rejected. If there is another one it returns
     * true; otherwise WeChat has no newer one: the fault lies elsewhere, or
     * is over in half a minute, after which the call may be repeated once.
     */
    public function rejected(string $token): bool
    {
        $changed = $this->ask('refresh', ['rejected_token' => $token])['changed'];
        if ($changed) {
            $this->readAgain = 0.0;
        }
        return $changed;
    }

    private function ask(string $area, ?array $body = null): array
    {
        try {
            $url = "{$this->vault}/v1/{$this->mount}/{$area}/{$this->account}";
            $headers = ["X-Vault-Token: {$this->vaultToken}"];
            if ($this->namespace !== '') {
                $headers[] = "X-Vault-Namespace: {$this->namespace}";
            }
            return call($url, $headers, $body)['data'];
        } catch (RuntimeException $failure) {
            throw new RuntimeException('Vault: ' . $failure->getMessage());
        }
    }
}

/** Seconds on a clock that is never set. */
function now(): float
{
    return hrtime(true) / 1e9;
}

/**
 * Sends a request, with a JSON body if there is one, and returns the JSON answer.
 * Its errors do not show the URL, which may hold a token.
 */
function call(string $url, array $headers = [], ?array $body = null): array
{
    $request = curl_init($url);
    curl_setopt_array($request, [
        CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 10,
        CURLOPT_HTTPHEADER => $headers,
    ]);
    if ($body !== null) {
        curl_setopt($request, CURLOPT_POSTFIELDS, json_encode($body, JSON_THROW_ON_ERROR));
    }
    $answer = curl_exec($request);
    if ($answer === false) {
        throw new RuntimeException(curl_strerror(curl_errno($request)));
    }
    $status = curl_getinfo($request, CURLINFO_RESPONSE_CODE);
    if ($status !== 200) {
        throw new RuntimeException("HTTP {$status} {$answer}");
    }
    $decoded = json_decode($answer, true);
    if (!is_array($decoded)) {
        throw new RuntimeException('the answer is not JSON');
    }
    return $decoded;
}

/**
 * Stands for any call of WeChat. One that is answered with a rejection of the
 * token is repeated once, if Vault says that there is another token.
 */
function callbackIPs(string $wechat, Tokens $tokens): array
{
    for ($repeated = false;; $repeated = true) {
        $token = $tokens->get();
        $answer = call("{$wechat}/cgi-bin/getcallbackip?" . http_build_query(['access_token' => $token]));
        $errcode = $answer['errcode'] ?? 0;
        if ($errcode === 0) {
            return $answer['ip_list'];
        }
        if ($repeated || !in_array($errcode, REJECTED, true) || !$tokens->rejected($token)) {
            throw new RuntimeException("WeChat: errcode {$errcode}: " . ($answer['errmsg'] ?? ''));
        }
    }
}

$wechat = getenv('WECHAT_URL') ?: 'https://api.weixin.qq.com';
$tokens = new Tokens(
    getenv('VAULT_ADDR'),
    getenv('VAULT_TOKEN'),
    getenv('WECHAT_ACCOUNT'),
    getenv('WECHAT_MOUNT') ?: 'wechat',
    getenv('VAULT_NAMESPACE') ?: '',
);
while (fgets(STDIN) !== false) {
    try {
        echo 'ok: ' . count(callbackIPs($wechat, $tokens)) . " addresses\n";
    } catch (RuntimeException $failure) {
        echo 'failed: ', $failure->getMessage(), "\n";
    }
}
